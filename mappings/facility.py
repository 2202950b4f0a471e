"""Facility profiles: everything that differs between two hospitals, as YAML, validated at load.

A profile names its file, line and key when it is wrong. It may inherit (``base: <id>``): maps merge key by key, lists are replaced.
"""

from __future__ import annotations
