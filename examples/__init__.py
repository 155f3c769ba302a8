"""Complete jobs that use tensorbus as an application would: through `clients` alone."""
