"""Generated cases: the same ones at every call, and no time limit, so that a busy machine fails nothing."""

import tempfile

from hypothesis import configuration, settings

configuration.set_hypothesis_home_dir(tempfile.gettempdir())
settings.register_profile("unit", deadline=None, derandomize=True, database=None)
settings.load_profile("unit")
