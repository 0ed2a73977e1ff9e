"""The lab's automation: one module per concern, see SCRIPTS.md."""
