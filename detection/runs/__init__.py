"""What runs have left in their folders: read, compared, and shown as tables and charts."""
