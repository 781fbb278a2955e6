"""A search without a control plane: `skerry optimize`, from a project or from an ONNX file.

Owns the directory that a search writes to, and the order of work.  The work itself is that of jobs:
the same steps, in the same child processes, with the same cache; only nobody is asked, nothing is
registered, and gates do not judge.

    OUT/bundles/PROFILE/VARIANT/    every candidate, unpacked as a device would serve it
    OUT/report.html, report.json
    OUT/cache/                      finished work; a search that is started again goes on from there
    OUT/optimize.log                what the children printed
"""
