"""Images, masks and groups: reading them, checking them, making sets with a known shortcut."""
