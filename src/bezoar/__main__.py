from bezoar.cli import main

main()
