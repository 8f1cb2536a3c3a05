"""A trained policy as one ONNX file, and what runs such a file without torch.

``metadata`` and what a trading system imports know neither torch nor pandas: nothing is imported here.
"""
