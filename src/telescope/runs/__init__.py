"""The run folder: config, versions, metrics, checkpoints, resume and curves on disk.

Leaves out training itself. Importing this loads neither torch nor matplotlib nor TensorBoard; the functions
that need them do.
"""

from telescope.runs.files import RunError
from telescope.runs.folder import RunFolder
from telescope.runs.formats.config import from_mapping, read_config, write_config
from telescope.runs.formats.log import MetricsLog, read_metrics

__all__ = [
    "MetricsLog",
    "RunError",
    "RunFolder",
    "from_mapping",
    "read_config",
    "read_metrics",
    "write_config",
]
