"""The method behind the ComfyUI-InST nodes. Only ``host`` knows ComfyUI; all other modules need torch alone."""
