"""The files of a run folder: checkpoints, configuration, metrics, tables, curves."""
