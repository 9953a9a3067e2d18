"""The production files on the programs that run them: see the folders beside this file.

`make test` does not collect this folder, because building the programs takes minutes.
"""
