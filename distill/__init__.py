# What a stopped command ends its line with.
GO_ON = "; run the same command again to go on"
