"""Built-in authenticators: who asks, told by what a request carries."""
