/**
 * Imported before onnxruntime-node, on the main thread: its builds for Linux and macOS keep a device id and look up their
 * vendor's event host unless this is set when the first session is made. A worker only has a copy of process.env.
 */
process.env.ORT_DISABLE_TELEMETRY = "1";
