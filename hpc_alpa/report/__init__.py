"""What a person sees: tables, a progress bar, pictures and the HTML page."""
