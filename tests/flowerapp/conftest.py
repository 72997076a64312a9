from __future__ import annotations

from tests.flowerapp.apps import run_app as run_app
from tests.flowerapp.apps import write_app as write_app
