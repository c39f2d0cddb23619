"""The engine on OpenVINO GenAI, with kernels of our own."""
