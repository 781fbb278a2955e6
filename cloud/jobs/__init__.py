"""Durable jobs: `build` and `retrain`, from a project's code to a candidate in the registry.

Owns the workflows (DBOS), the processes in which a project's code runs, the cache of finished
steps, and the jobs table that people look at.

Rules:
    * A job is a row before it is a workflow: whoever asks for one writes the row, the worker turns
      it into a workflow of the same id.  Nothing is lost between the two, nothing starts twice.
    * A step's result is small JSON; whatever is large is a blob named in it.
    * A project's code, torch and the optimizer run in child processes only, one heavy one at a
      time on a machine.  A child ends with its parent.
    * A worker may be killed at any moment.  The next one goes on at the step that was running.
"""
