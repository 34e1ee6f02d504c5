"""Pairs from the npm package @iconify/json: icons of hundreds of sets, with their names.

`otter-jax prepare --from=iconify:PACKAGE --to=DIR` reads the package, as a folder or as the tarball
that `npm pack @iconify/json` leaves. The modules follow the way of an icon: `package` reads the
sets and chooses among them, `names` makes captions, `drawings` renders, `copies` finds what looks
the same, `splits` divides into training, unseen styles and unseen concepts, and `source` puts them
in this order and gives the pairs.
"""
