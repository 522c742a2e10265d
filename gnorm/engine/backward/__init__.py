"""Gradients of all layers in one backward pass, and what hooks see in a forward pass."""
