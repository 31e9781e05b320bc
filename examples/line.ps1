<#
One round of a line on Windows: judge every new image, list the defective ones worst first, sort the files by verdict.

    powershell -ExecutionPolicy Bypass -File examples\line.ps1 [-Folder C:\line3]

Folder (default: the current one) holds incoming\ and model\. New is what still lies in incoming\: judged images move
to judged\<time>\OK\ or ...\NG\, with their rows beside them in results.csv. An unreadable image (perhaps half written
as yet) stays, and is tried again in the next round. Run it from the Task Scheduler, or in a loop.

Needs: inspectad on PATH; Windows PowerShell 5.1 or PowerShell 7.

Exit codes, for the line controller: 0 all OK, or nothing new; 1 error; 3 at least one NG; 4 no NG, but an unreadable
image (without a verdict: never take it for a good part).

Expected output (severity is score / threshold):

    NG 1.54 part_012.png
    NG 1.38 tray 7/part_002.png
    judged\20250131-101500-4711: 6 OK, 2 NG, 0 unreadable
#>
param([string]$Folder = '.')

$ErrorActionPreference = 'Stop'
$PSNativeCommandUseErrorActionPreference = $false  # exit codes 3 and 4 are answers, not errors (PowerShell 7.4)
trap {
    [Console]::Error.WriteLine("line.ps1: $_")
    exit 1
}

$line = (Resolve-Path -LiteralPath $Folder).ProviderPath
$incoming = Join-Path $line 'incoming'
$name = Join-Path 'judged' ('{0}-{1}' -f (Get-Date -Format 'yyyyMMdd-HHmmss'), $PID)
$round = Join-Path $line $name

$suffixes = '.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff'
$new = @(Get-ChildItem -LiteralPath $incoming -Recurse -File | Where-Object {
        ($suffixes -contains $_.Extension) -and -not $_.Name.StartsWith('.')
    })
if ($new.Count -eq 0) { exit 0 }

# The folder, not a list of names on standard input: Windows PowerShell 5.1 would send that in ASCII.
# Standard output is no terminal here, so scan sends its rows there too; results.csv has them already.
& inspectad scan $incoming --fail-on-defect --model (Join-Path $line 'model') --output $round | Out-Null
$code = $LASTEXITCODE
if (@(0, 3, 4) -notcontains $code) { exit $code }  # 1 error, 2 wrong usage: scan has said why, and nothing was moved

# [double] reads a decimal point in every culture; names in results.csv are relative to incoming\, with slashes.
$rows = @(Import-Csv -LiteralPath (Join-Path $round 'results.csv') -Encoding UTF8)
$judged = @($rows | Where-Object { $_.verdict -ne 'UNREADABLE' } | Sort-Object { [double]$_.severity } -Descending)
foreach ($row in $judged) {
    $target = Join-Path (Join-Path $round $row.verdict) $row.image
    [void][System.IO.Directory]::CreateDirectory((Split-Path -Parent $target))
    Move-Item -LiteralPath (Join-Path $incoming $row.image) -Destination $target
    if ($row.verdict -eq 'NG') {
        $severity = ([double]$row.severity).ToString('0.00', [cultureinfo]::InvariantCulture)
        Write-Output "NG $severity $($row.image)"
    }
}

$ok = @($rows | Where-Object { $_.verdict -eq 'OK' }).Count
$ng = @($rows | Where-Object { $_.verdict -eq 'NG' }).Count
Write-Output "${name}: $ok OK, $ng NG, $($rows.Count - $ok - $ng) unreadable"
exit $code
