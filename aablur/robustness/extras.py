"""Packages beyond torch that come with the extra of the same name."""

from functools import partial

from ..extras import require as _require

require = partial(_require, extra="robustness")
