"""The control plane's public API in Python: schemas, errors, and a typed client in two forms."""
