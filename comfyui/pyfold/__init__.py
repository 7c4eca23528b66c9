"""pyfold's nodes for ComfyUI: this folder goes into ``custom_nodes``, and pyfold into ComfyUI's Python."""

from pyfold.adapters.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
