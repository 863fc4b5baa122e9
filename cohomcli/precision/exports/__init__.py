"""A plan for other tools: one file an exporter, each with what it keeps of the plan and what it cannot say."""

from __future__ import annotations

from cohomcli.registry import Registry

# Name to `export(source, folder) -> Exported`; the folder exists and is empty.
EXPORTERS = Registry(
    "export",
    {
        "torch": "cohomcli.precision.exports.torch_program:export",
        "onnx": "cohomcli.precision.exports.onnx_model:export",
        "torchao": "cohomcli.precision.exports.torchao_config:export",
        "hf": "cohomcli.precision.exports.hf_folder:export",
        "modelopt": "cohomcli.precision.exports.modelopt_nodes:export",
        "bitsandbytes": "cohomcli.precision.exports.bitsandbytes_list:export",
        "autocast": "cohomcli.precision.exports.autocast_shim:export",
    },
)
# What has to be installed before an export can be written; the others need nothing but cohom.
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "modelopt": ("onnx", "onnxscript")}
EXTRA = "cohom[export]"
