"""DiffDiv and DreamRec, which generate the next item by diffusion; imported part by part."""
