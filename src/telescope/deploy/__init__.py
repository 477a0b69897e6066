"""Trained agents outside of this package: as an ONNX graph, or as arrays that a reader of one file acts with.

`exporting.py` writes and checks them, `acting.py` is an agent as one module, `reader.py` needs nothing but NumPy.
"""
