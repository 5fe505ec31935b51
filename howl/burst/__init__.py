"""Starting workers elsewhere."""
