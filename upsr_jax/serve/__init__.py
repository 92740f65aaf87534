"""A page and an HTTP interface for photos to upscale; needs the extra `serve`."""
