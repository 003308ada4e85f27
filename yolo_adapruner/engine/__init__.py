"""The only rooms that know Ultralytics.

Importing this package sets, where the user has not, the environment variables that keep Ultralytics and albumentations
from calling home or installing packages. They must be set before either is imported.
"""

import os

for _name, _value in {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0", "NO_ALBUMENTATIONS_UPDATE": "1"}.items():
    os.environ.setdefault(_name, _value)
