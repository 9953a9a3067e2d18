"""The production files on the programs that run them: see `tools.py` and the folders beside it.

`make test` does not collect this folder, because building the programs takes minutes.
"""
