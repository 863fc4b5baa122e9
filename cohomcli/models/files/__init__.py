"""The inert door for single model files: bytes in, tensors and names out; nothing a file says is ever called.

`read.read_model_file` reads any kind, `opened.open_model_file` also builds the model where that needs no code from the
file. The way through the modules, from bytes to a model:

    source, sniff, archive        bounded reads; what kind of file it is; strict zip archives
    inert, rebuild, numpystubs    a pickle machine without calls; our stand-ins for tensor constructors
    torchfile, torchscript, exported, safetensors_data, arrays     one module per format
    modules, statedict            module trees, and the one state dict that is the model
    tensors                       raw bytes into tensors, claims checked against what is there
    family*, heads, shapes        names and shapes into a transformers configuration, assumptions listed
    hfbuild, nnbuild, exportedgraph, usercode, assign     the ways to a module that runs
    trusted, trusted_child        the one way that runs the file, by the user's explicit permission

Whatever a file does, the caller sees tensors or one `InputRefused` whose line says what is wrong: not a model file (and
what it is), corrupt (cut short, failed checksum, contradicting sizes), or refused (it asks for what no honest file
needs: names that leave the archive, overlapping or inflating members, more claimed than held, endless nesting).
"""
