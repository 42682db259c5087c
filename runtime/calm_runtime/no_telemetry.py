"""Importing this module turns ONNX Runtime's telemetry off for this process and all it starts.

From 1.29 on, the Linux and macOS builds keep a device id and events under ~/.cache/Microsoft, and nine seconds after they
were loaded look up their vendor's event host. They read ORT_DISABLE_TELEMETRY (1, true, yes or on) once: in Python when
`onnxruntime` is imported. Set later it changes nothing, and `onnxruntime.disable_telemetry_events` prevents neither.

`calm_runtime` and `calm_export` import this module before anything else. What does not import them, such as a program that
uses none of our code, sets the variable itself.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # whatever the user had set: a photo is nobody else's business
