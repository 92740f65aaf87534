"""How low-resolution images are made of photographs."""
