"""Networks as frozen data: nodes, links and slices, and the builders that make them."""
