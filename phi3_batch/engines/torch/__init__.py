"""The engine on torch and transformers."""
