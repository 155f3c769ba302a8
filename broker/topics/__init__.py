"""Topics: names, filters, retained messages, subscriptions. Pure: no input or output, no clock."""
