"""One module a page; each has `page(view, …)`, which builds it into the current element."""
