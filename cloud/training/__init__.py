"""Training: from a dataset version to fitted, exported members of a model family.

Everything here but `arrays` runs in child processes (`cloud.jobs.child`), because it executes a
project's code.  Data comes and goes as `.npz` files; nothing here knows the database or the blobs.

Rules:
    * A network is fitted on what the pipeline's own steps make of the data, run by
      `edge_agent.pipeline`: training cannot prepare inputs otherwise than serving does.
    * Accuracy, macro-F1 and the recall of each class are reported, always on rows that were not
      fitted on.
    * The same seed, code, data and machine give the same network.
"""
