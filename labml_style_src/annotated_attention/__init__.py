"""Attention mechanisms, one annotated file each.

Import the mechanism you want by name: `from annotated_attention.alibi import alibi_attention`.
"""
