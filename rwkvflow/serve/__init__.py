"""An OpenAI-like server and its page on librwkv: the same request gives the same answer, whoever else is served."""
