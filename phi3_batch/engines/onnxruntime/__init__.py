"""The engine on onnxruntime-genai."""
