"""The inert door for single model files: bytes in, tensors and names out; nothing a file says is ever called."""
