"""Starting workers elsewhere: on GitHub, or as processes of this machine."""
