module devvault

go 1.26

require github.com/hashicorp/vault v1.21.1
