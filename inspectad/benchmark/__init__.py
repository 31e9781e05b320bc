"""``inspectad benchmark accuracy``: what the methods are worth on labelled sets of images, and beside a peer.

`datasets` finds the images, `draws` says which of them teach (pure), `cells` trains and measures one combination,
`rows` keeps its row on disk, `accuracy` goes through all of them, `report` makes tables of the rows (pure). `peer` is
a script for another Python.
"""
