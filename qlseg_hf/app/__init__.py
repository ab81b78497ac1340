"""The page that segments pictures in a browser."""
