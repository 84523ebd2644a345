"""Write a finished checkpoint, its card and its samples."""
