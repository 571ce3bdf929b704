"""The playground: a page that asks a bundle about images, on the SDK for the web."""
