"""Everything that imports torch or MONAI, so that upgrading either touches one folder."""
