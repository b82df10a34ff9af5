"""The demo page: a photograph and words in a browser, on this computer only."""
