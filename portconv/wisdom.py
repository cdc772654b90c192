"""What was measured on this machine and is kept, for `strategy="measure"`: where, what, and how to forget it.

`portconv.tune` and ``strategy="measure"`` add to it. ``PORTCONV_CACHE_DIR`` names another folder for it, and
``PORTCONV_WISDOM=0`` switches it off.

Examples
--------
>>> from portconv import wisdom
>>> wisdom.path().name
'wisdom.json'
>>> for (environment, problem), record in wisdom.load().items():
...     fastest = min(record.seconds, key=record.seconds.get)
"""

from .dispatch.wisdom import Key, Record, WisdomError, clear, enabled, load, path, save

__all__ = ["Key", "Record", "WisdomError", "clear", "enabled", "load", "path", "save"]
