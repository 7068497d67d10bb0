"""Planning: data in, a `Plan` out. Nothing here communicates or prints."""
